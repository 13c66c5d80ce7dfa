"""JupyterLab for this checkout: notebooks are clean when they are opened.

A kernel tells JupyterLab its language and the version of Python to the last digit, and JupyterLab writes that into the
notebook, which then has "unsaved changes" that nobody made. Here a notebook is handed over with what the kernel of the
same Python will say, so that there is nothing to write.
"""

from typing import Any

from ipykernel.ipkernel import IPythonKernel
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager


class CleanContents(AsyncLargeFileManager):
    """Files as they are, but for what a notebook of Python says of its language."""

    async def get(self, path: str, content: bool = True, *arguments: Any, **options: Any) -> dict[str, Any]:
        model = await super().get(path, content, *arguments, **options)
        notebook = model.get("content") if model.get("type") == "notebook" else None
        if notebook and notebook["metadata"].get("language_info", {}).get("name", "python") == "python":
            notebook["metadata"]["language_info"] = dict(IPythonKernel.language_info)
        return model


c = get_config()  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
c.ServerApp.contents_manager_class = CleanContents
