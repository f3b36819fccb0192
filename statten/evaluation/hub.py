"""An exported folder on the Hugging Face Hub, where `timm.create_model("hf-hub:USER/NAME", pretrained=True)` finds it."""

from pathlib import Path

from statten.errors import Failed, UserError, first_line, in_shell


def check_repo(repo: str) -> None:
    """Raise UserError unless a model may be pushed to a repository of this name: a name of the hub's, and a token."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UserError(f"--push-to-hub: must be USER/NAME as on the Hugging Face Hub, but got {repo!r}") from None
    if huggingface_hub.get_token() is None:
        raise UserError("--push-to-hub: there is no token of the Hugging Face Hub; type `hf auth login`, or set $HF_TOKEN")


def push(folder: Path, repo: str) -> str:
    """Upload an exported folder, into a repository that is made where it is new, and return its address.

    Raises:
        Failed: the hub refused, or did not answer; the folder is whole all the same.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        made = hub.create_repo(repo, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Add a model of statten")
    except Exception as error:  # the library under it, which raises its own, is another one in every few versions
        again = f"hf upload {in_shell(repo)} {in_shell(folder)}"
        raise Failed(f"--push-to-hub: {first_line(error)}; {folder} is whole, push it with: {again}") from error
    return str(made)
