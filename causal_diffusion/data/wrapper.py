"""A source around another one."""


class Wrapper:
    """Has the length and the attributes of ``source``; subclasses say what becomes of its elements.

    Args:
        source: see sources.py.
    """

    def __init__(self, source):
        self.source = source

    def __getattr__(self, name):
        if name.startswith("__") or name == "source":  # while it is unpickled there is no source yet
            raise AttributeError(name)
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)
