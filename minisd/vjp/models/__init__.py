"""The three networks, backwards: wiring only. Each block keeps its inputs on the way forward and is computed again on the way back."""
