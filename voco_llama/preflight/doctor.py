"""`doctor`: all checks, of the machine and, if a training is named, of it."""

from voco_llama.preflight.finding import Finding, run_checks
from voco_llama.preflight.machine import machine_checks
from voco_llama.settings import TrainSettings


def doctor(settings: TrainSettings | None = None) -> list[Finding]:
    """Look at everything that a training needs; nothing is loaded, downloaded or written.

    Args:
        settings: Of the training; None: the machine alone.
    """
    findings = run_checks(machine_checks())
    if settings is not None:
        from voco_llama.preflight.training import training_checks

        findings += run_checks(training_checks(settings))
    return findings
