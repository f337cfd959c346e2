"""What went wrong on the way to the hub, in words."""

from __future__ import annotations

import json

from gpt2kit.torch_engine.weight_files import first_line

_PORTAL = "answers with a web page; is this a captive portal? Log in with a browser"


def explain(error: Exception, name: str, revision: str | None, host: str) -> tuple[str, str]:
    """The message about an error of huggingface_hub, and its reason in a few words."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why a file could not be had
    if why := _unreachable(error, host):
        message = (
            f"{name}: not a local folder, not in the cache, and the hub cannot be reached ({why}); "
            "check the network, or give a folder or 'bundled'"
        )
        return message, why
    if isinstance(error, hub.GatedRepoError):
        why = "its owners must allow the download; ask on its page, then run `hf auth login`"
    elif isinstance(error, hub.RevisionNotFoundError):
        why = f"the hub has no revision {revision!r}"
    elif isinstance(error, hub.RepositoryNotFoundError):
        why = "no such model on the hub (or it needs a login), and no such folder"
    elif isinstance(error, hub.EntryNotFoundError):
        why = "the hub has no config.json, or not all files, under that name"
    elif _status(error) in (401, 403):
        why = f"{host} refuses access ({_status(error)}); check the token that `hf auth` has"
    else:  # an impossible id, a full disk, a file of another size than announced
        why = f"cannot be downloaded: {first_line(error)}"
    return f"{name}: {why}", why


def _unreachable(error: Exception, host: str) -> str:
    """Why there is no talking to the hub; "" for answers that are the hub's own."""
    from huggingface_hub import errors as hub

    status = _status(error)
    if isinstance(error, hub.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if status == 511 or isinstance(error, hub.FileMetadataError):
        return f"{host} {_PORTAL}"
    if isinstance(error, json.JSONDecodeError):
        page = error.doc.lstrip().startswith("<")
        return f"{host} {_PORTAL if page else 'does not answer as the hub does'}"
    if isinstance(error, KeyError | TypeError | AttributeError):  # JSON, but not the hub's
        return f"{host} does not answer as the hub does"
    if status == 429:
        return f"{host} answers 429: too many requests"
    if status >= 500:
        return f"{host} answers {status}; try again later"
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"{host} does not answer"
    lost = isinstance(error, hub.LocalEntryNotFoundError | ConnectionError)
    lost = lost or type(error).__name__ == "ConnectionError"  # that of requests is an OSError
    local = isinstance(error, OSError | ValueError)  # a full disk, an impossible id, …
    # What is left are errors of the HTTP library, of which there are several.
    return "" if not lost and (status or local) else f"{host}: {first_line(error)}"


def _status(error: Exception) -> int:
    """The HTTP status that an error stands for; 0 if it stands for none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))
