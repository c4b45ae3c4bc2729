"""The pack's own kinds of error."""

from __future__ import annotations


class AsynDMError(ValueError):
    """Base of them: what the user is told is the sentence, without the path of a module before it.

    ComfyUI writes an error's module before its name and its sentence unless it is a built-in's, and for a node pack the
    module is a folder of the user's machine. So the kinds go by their bare names, as ValueError does.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Every kind of them."""
        super().__init_subclass__(**kwargs)
        cls.__module__ = ValueError.__module__
