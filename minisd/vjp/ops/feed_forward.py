"""The feed-forward half of a transformer block, backwards, by rows, so that the wide middle is never in memory as a whole."""

from ... import ops
from ...backend import array_module
from ...ops.cpu.linear import ROWS
from .activation import geglu
from .linear import linear, total


def feed_forward(x, w_in, b_in, w_out, b_out, *, again=None):
    """y = W′ g + b′, g = GEGLU(W x + b)    →    dg = dy W′, then back through GEGLU and W; the middle is made again, 512 rows at a time.

    dy [..., C′] -> dx [..., C]; wrt_params: dx, dw_in, db_in, dw_out, db_out        again: a function that makes x anew, which is then not kept
    """

    remake = again or (lambda: x)

    def pullback(dy, wrt_params=False):
        x = remake()
        rows, d_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        dx, of_params = array_module(x).empty(rows.shape, dtype=x.dtype), None
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            h, pull_in = linear(rows[part], w_in, b_in)
            g, pull_geglu = geglu(h)
            dh = pull_geglu(ops.linear(d_rows[part], w_out.T))
            if not wrt_params:
                dx[part] = pull_in(dh)
                continue
            dx[part], *of_in = pull_in(dh, wrt_params=True)
            block = (*of_in, d_rows[part].T @ g, total(d_rows[part]))
            of_params = block if of_params is None else tuple(a + b for a, b in zip(of_params, block))
        dx = dx.reshape(x.shape)
        return (dx, *of_params) if wrt_params else dx

    return ops.feed_forward(x, w_in, b_in, w_out, b_out), pullback
