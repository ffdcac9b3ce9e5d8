"""The comparison helper has to fail where it must: a check that cannot fail proves nothing."""

import numpy as np
import pytest

from tests.numerics import assert_close_f64, assert_faithful, max_error, relative_l2
