"""How to train a flow: the choices, and the named sets of them."""

from dataclasses import dataclass

from sedflow_core.flow import FlowConfig


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train: network, optimiser, schedule.

    Attributes:
        flow: size of the network; `library` "sbi" builds it through sbi's `posterior_nn`.
        learning_rate: of Adam, which trains everything but what Muon trains.
        hidden_learning_rate: of Muon, which trains the square matrices; None: Adam trains all.
        batch_size, gradient_clip: of both.
        warm_up_steps, cosine: linear warm-up, then cosine decay over `max_epochs`, or constant.
        bfloat16_epochs: so many epochs, the first ones, multiply matrices in bfloat16. The last
            should not: they settle what its eight bits cannot tell apart.
        max_epochs, patience: stop early after `patience` epochs without a better validation loss.
        validation_fraction: share of the rows held out.
        seed: of the split, the order and the noise.
    """

    flow: FlowConfig
    library: str = "sedflow"
    learning_rate: float = 2e-3
    hidden_learning_rate: float | None = 0.01
    batch_size: int = 1024
    gradient_clip: float = 5.0
    warm_up_steps: int = 500
    cosine: bool = True
    bfloat16_epochs: int = 0
    max_epochs: int = 20
    patience: int = 20
    validation_fraction: float = 0.02
    seed: int = 0


PRESETS: dict[str, TrainConfig] = {
    "streaming": TrainConfig(
        FlowConfig(5, 160, "hardswish", n_embedding=64, is_whitened=True),
        learning_rate=3e-3,
        batch_size=4096,
        warm_up_steps=300,
        max_epochs=30,
    ),
    "paper": TrainConfig(
        FlowConfig(15, 500, "tanh"),
        library="sbi",
        learning_rate=5e-4,
        hidden_learning_rate=None,
        batch_size=50,
        warm_up_steps=0,
        cosine=False,
        max_epochs=1000,
        patience=20,
        validation_fraction=0.1,
    ),
}
"""Named configurations: "paper" is Hahn & Melchior (2022), Sec. 3.3, without batch norm."""
