"""A request changed by a JSON merge patch (RFC 7396), where another type of method replaces the whole method."""

from collections.abc import Mapping
from typing import Any

DEFAULT_TYPE = "cyclic_swa"  # of a method without a type


def method_type(method: object) -> str:
    """Return the type of a request's method, as JSON; the default one's where it has none."""
    kind = method.get("type") if isinstance(method, Mapping) else None
    return DEFAULT_TYPE if kind is None else str(kind)


def merged(target: Any, patch: Any) -> Any:
    """Return the target with a merge patch applied: objects are merged, null removes, everything else replaces."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def patched(request: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of a job with the patch; one type of method's fields are not another's."""
    change = patch.get("method")
    if isinstance(change, Mapping) and "type" in change and method_type(change) != method_type(request.get("method")):
        request = {name: value for name, value in request.items() if name != "method"}
    return dict(merged(request, patch))
