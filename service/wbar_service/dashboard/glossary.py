"""The words of results in plain ones, known in one place: what a column, a row or a state means to who sees it first."""

from collections.abc import Mapping

from wbar.jobs import StepPhase
from wbar.results import Verdict
from wbar.states import JobStatus

# By column or word; each stands alone, as the title of what it explains and in the legend below a table.
TERMS: Mapping[str, str] = {
    "score": "How good the answers are, by what is asked for: of classes the accuracy, the share of held-out images that got "
    "the right class; of attributes its mean over them; of masks the share of labelled pixels (pixel accuracy); of boxes "
    "COCO's average precision (AP); of numbers R².",
    "accuracy": "The share of held-out images that got the right class.",
    "label_accuracy": "The share of right yes-or-no answers on held-out images, one for each label.",
    "attribute_accuracy": "The mean over attributes of the share of held-out images that got the right category, of those "
    "that the attribute is known of.",
    "attribute_loss": "How little probability the right categories were given: the mean over images of the mean over their "
    "attributes of the negative log-likelihood (NLL), in nats. Lower is better.",
    "label_loss": "How little probability the right yes-or-no answers were given: their mean negative log-likelihood (NLL), in "
    "nats. Lower is better.",
    "pixel_accuracy": "The share of labelled pixels of held-out images that got the right class.",
    "pixel_loss": "How little probability the right class of a pixel was given: the mean over images of the mean negative "
    "log-likelihood (NLL) of their labelled pixels, in nats. Lower is better.",
    "loss": "How little probability the right class was given: the mean negative log-likelihood (NLL), in nats. Lower is "
    "better; confident mistakes cost most.",
    "mean_iou": "Of masks: the pixels that both call a class over those that either does, as a mean over classes. 1 is best.",
    "ap": "Of boxes: COCO's average precision, the mean over how closely a box must fit and over classes. 1 is best.",
    "ap50": "The same where half of both boxes' area in common is close enough.",
    "mask_ap": "Of the masks that come with boxes: the same average precision, by the pixels that two masks have in common.",
    "box_loss": "The network's own loss on held-out images: how far its boxes and classes are from the labelled ones. Lower is "
    "better.",
    "r2": "Of numbers: 1 − Σ(ŷ − y)² / Σ(y − ȳ)², as a mean over targets. 1 is best, 0 is that of always giving the mean.",
    "number_loss": "The mean squared error on held-out images, each target divided by its standard deviation in training. "
    "Lower is better.",
    "ece": "Expected calibration error: how far the stated confidence is from the share that was right. 0 is best.",
    "verdict": "Whether the average beat the start: better or worse where their losses on the same held-out images differ by "
    "more than two standard errors, else there is no clear difference.",
    "held_out": "Images that were not trained on. Where held-out images choose between averages, half of them choose (the "
    "selection split), and every number is from the other half.",
    "guard": "A safeguard: where the average is worse than the start on the images that choose, the download is the start.",
    "snapshot": "The weights as they stood at one moment of the training.",
    "vs_start": "The difference to the start, the checkpoint as it was uploaded. Green: the average won.",
    "vs_control": "The difference to the control: a plain fine-tune of the same length, where the job trained one. Green: the "
    "average won.",
    "priority": "Of your own queued jobs the one with the highest number is taken first.",
}
# By comparison: what stands in its row.
ROWS: Mapping[str, str] = {
    "start": "the checkpoint as it was uploaded",
    "start_recomputed": "the same, with BatchNorm statistics measured anew as for the average: what that alone changes",
    "last": "the weights at the end of the training, not averaged",
    "averaged": "one network of the same size, the mean of weights along the training",
    "ensemble": "the mean of all snapshots' outputs, at as many times the cost: what the average comes close to",
    "snapshots": "what one snapshot has by itself, as a mean over all: of boxes no mean of networks' outputs is defined",
    "swag": "the mean of outputs of networks drawn around the snapshots",
    "best_replica": "of the trainings with other seeds, the one with the lowest loss on these images, which flatters it",
    "replicas": "what one of the trainings with other seeds has by itself, as a mean over all",
    "control": "a plain fine-tune of the same length, not averaged: what averaging is to beat",
}
# What a log says of a job that has come to a status.
STATES: Mapping[JobStatus, str] = {
    "queued": "The job waits in the queue.",
    "running": "The job is running.",
    "paused": "The job is paused; it goes on where it stopped once it is resumed.",
    "succeeded": "The job has succeeded.",
    "failed": "The job failed.",
    "cancelled": "The job was cancelled.",
}
# What a running job is doing.
PHASES: Mapping[StepPhase, str] = {
    "loading": "reading the data",
    "high": "training at the high rate",
    "low": "training at the low rate",
    "batchnorm": "measuring BatchNorm statistics for the average",
    "evaluate": "measuring on held-out images",
    "report": "comparing, and drawing the report",
}
VERDICT_WORDS: Mapping[Verdict, str] = {"better": "better", "same": "no clear difference", "worse": "worse"}
