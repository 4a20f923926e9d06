"""Seconds this process has spent compiling, so that compute can be quoted without them."""

import jax

_EVENTS = ("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration", "backend_compile_duration")
_spent = [0.0]


def _listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    del kwargs
    if event.endswith(_EVENTS):
        _spent[0] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_listen)


def compile_seconds() -> float:
    """Tracing, lowering and compiling of every program so far."""
    return _spent[0]
