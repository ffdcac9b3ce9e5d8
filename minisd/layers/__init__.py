"""Layers: functions of a view of the checkpoint, `f(p, x, …)`, each as short as its equation. They know ops, but no model."""
