"""Errors of the consumer.

SedflowError
└── ConsumerError
    ├── SettingsError      a key of the settings is unknown, missing or holds a bad value
    ├── MessageError       one message cannot be used; it becomes a dead letter, the daemon goes on
    │   ├── DecodeError    its bytes are not an Avro record of a known schema
    │   ├── AdaptError     the record is not an alert of a known survey
    │   └── EncodeError    its summary does not fit the output schema
    ├── ArchiveError       an archive or an output file cannot be read or written
    └── BrokerError        the broker cannot be used: stop without committing
        └── WindowAbortedError   a window was rolled back and may be tried again
"""

from sedflow_core.errors import SedflowError


class ConsumerError(SedflowError):
    """Root of the consumer's errors."""


class SettingsError(ConsumerError):
    """A key of the settings is unknown, missing or holds a bad value."""


class MessageError(ConsumerError):
    """One message cannot be used."""


class DecodeError(MessageError):
    """The bytes are not an Avro record of a known schema."""


class AdaptError(MessageError):
    """The record is not an alert of a known survey."""


class EncodeError(MessageError):
    """The summary does not fit the output schema."""


class ArchiveError(ConsumerError):
    """An archive or an output file cannot be read or written."""


class BrokerError(ConsumerError):
    """The broker cannot be used; nothing may be committed."""


class WindowAbortedError(BrokerError):
    """A window was rolled back, its input positions restored; it may be tried again."""
