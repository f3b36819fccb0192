"""Evaluation on the test part, which nothing else reads: accuracy, rates and energy of our runs and of published weights.

    <run>/evaluations/<dataset>-T4-b2-<digest>/     or <storage>/evaluations/<file>-..., for a published checkpoint,
                                                    or <output>/<name>-..., with --output
        report.json          everything that was found, the energy ledger included
        report.md            the same as tables
        report.html          a page with tables and figures that opens from disk, without a network
        energy.json          the ledger alone, for: statten energy check
        samples.safetensors  label, prediction, rank, confidence and loss of every sample, for: statten compare;
                             and on how many samples every neuron fired, by timestep (of large models, whose
                             neurons would fill hundreds of megabytes, summed over each channel)
        rates.png, ...       pictures
        events.out.tfevents.*  the same for TensorBoard

The digest covers weights, model and data: the same evaluation goes to the same folder, another one never does.
"""

from statten.evaluation.evaluator import evaluate, home, measure_target
from statten.evaluation.measure import Measured
from statten.evaluation.report import summary
from statten.evaluation.targets import Target, open_target, resolve

__all__ = ["Measured", "Target", "evaluate", "home", "measure_target", "open_target", "resolve", "summary"]
