"""Every error that TinyForge raises on purpose, each with the exit code of the command line.

::

    TinyForgeError            5  internal: a fault of TinyForge itself
    ├── GateError             1  everything ran, but a promised gate failed
    ├── UsageError            2  what the user gave cannot be used
    │   ├── RecipeError       2  a recipe or target file, or an override
    │   ├── DataError         2  images, labels, folders
    │   └── BundleError       2  a bundle that cannot be read or is not one
    ├── MissingError          3  a dependency, a model or weights are not here
    └── DeviceError           4  the device cannot be reached or used

``tinyforge.device`` travels without this package; its ``BundleFault`` and ``DecodeFault`` are mapped to these by the
callers.
"""


class TinyForgeError(Exception):
    """Base of all. The message says what is wrong and what to do, in one or a few lines."""

    exit_code = 5


class GateError(TinyForgeError):
    exit_code = 1


class UsageError(TinyForgeError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class DataError(UsageError):
    pass


class BundleError(UsageError):
    pass


class MissingError(TinyForgeError):
    exit_code = 3


class DeviceError(TinyForgeError):
    exit_code = 4
