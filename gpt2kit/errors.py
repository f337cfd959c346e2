"""Every error that gpt2kit raises on purpose.

GPT2KitError
├── ConfigError       config.json asks for something that the model does not compute
├── CheckpointError   weights or tokenizer files missing, corrupt or misshapen; unknown model id
├── InputError        an argument is out of range or of a wrong type
│   ├── TapError      unknown tap, or one that this engine does not carry
│   └── EditError     an edit that does not fit its tap
├── NonFiniteError    a value that the model computed is NaN or infinite: the dtype overflows
├── ExportError       tracing or writing an ONNX file failed
│   └── ParityError   torch and ONNX disagree; exit code 1
├── MissingPackageError   a package that this needs is not installed
├── EngineError       onnxruntime, its device, or the .onnx file cannot be used
└── InternalError     a check of our own failed, which is a bug in gpt2kit; exit code 70

A message is one line: what was given, what is wrong, what to do. The exit code is 2 unless the tree
says otherwise.
"""


class GPT2KitError(Exception):
    """Root of the tree; the command line prints it as one line and exits with `exit_code`."""

    exit_code = 2

    def __str__(self) -> str:
        """The message on one line, even where it repeats a name that holds line breaks."""
        return " ".join(super().__str__().splitlines())


class ConfigError(GPT2KitError):
    """The model's configuration is not one that gpt2kit computes."""


class CheckpointError(GPT2KitError):
    """A model could not be found, read, or does not fit its configuration."""


class InputError(GPT2KitError, ValueError):
    """An argument is out of range or of a wrong type."""


class TapError(InputError):
    """A tap is unknown, or this engine does not carry it."""


class EditError(InputError):
    """An edit does not fit the tap it names."""


class NonFiniteError(GPT2KitError, ArithmeticError):
    """A value that the model computed is NaN or infinite."""


class ExportError(GPT2KitError):
    """An ONNX file could not be made."""


class ParityError(ExportError):
    """Torch and ONNX do not agree within the stated tolerance."""

    exit_code = 1


class MissingPackageError(GPT2KitError, ImportError):
    """A package is not installed, or does not import; the message has the pip command."""


class EngineError(GPT2KitError):
    """An ONNX file cannot be run here."""


class InternalError(GPT2KitError):
    """A check of our own failed, which no input should cause: a bug in gpt2kit."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; this is a bug in gpt2kit, please report it")
