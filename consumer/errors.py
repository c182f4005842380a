"""Errors of the consumer.

SedflowError
└── ConsumerError
    ├── SettingsError      a key of the settings is unknown, missing or holds a bad value
    ├── MessageError       one message cannot be used; it becomes a dead letter, the daemon goes on
    │   ├── DecodeError    its bytes are not an Avro record of a known schema
    │   ├── AdaptError     the record is not an alert of a known survey
    │   └── EncodeError    its summary does not fit the output schema
    ├── ArchiveError       an archive or an output file cannot be read or written
    ├── HaltedError        the stream is not what it should be: read no more until someone looked
    │   ├── OffsetsLostError     messages are gone that were never read
    │   └── BreakerError         too many messages are bad for the messages to be at fault
    └── BrokerError        the broker cannot be used: stop without committing, try again later
        ├── NoAnswerError        it does not answer; nothing says that it refuses
        ├── WindowAbortedError   a window was rolled back and may be tried again
        └── WorkerLostError      this process must end; another one goes on in its slot
"""

from sedflow_core.errors import SedflowError


class ConsumerError(SedflowError):
    """Root of the consumer's errors."""


def exit_code(error: SedflowError) -> int:
    """Return 1 where the broker is in the way, 2 where settings or input cannot be used."""
    return 1 if isinstance(error, BrokerError) else 2


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


class NoAnswerError(BrokerError):
    """The broker does not answer, which may pass; nothing says that it refuses."""


class WindowAbortedError(BrokerError):
    """A window was rolled back, its input positions restored; it may be tried again."""


class WorkerLostError(BrokerError):
    """This process must end: it was fenced, or a call to the broker does not come back."""


class HaltedError(ConsumerError):
    """The stream is not what it should be: nothing more is read until someone looked."""


class OffsetsLostError(HaltedError):
    """Messages are gone from the broker that were never read."""


class BreakerError(HaltedError):
    """So many messages are bad that the stream is wrong rather than they."""
