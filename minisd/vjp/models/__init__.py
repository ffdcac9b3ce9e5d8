"""The three networks, backwards: wiring only. The layers know what to keep; here only the order is turned round."""
