"""What TensorBoard shows of a run: all of its epochs whatever ended it, in groups with units and meanings, under its name."""

import re

from evaluated import TINY
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from statten.config import load_config
from statten.metrics.labels import meaning, reported
from statten.storage.events import PREFIX, EventFile, layout, tag

CONFIG = load_config("digits", TINY)


def row(epoch, top1, **more):
    return {"epoch": epoch, "train/loss": 2.0, "train/top1": top1, "val/loss": 1.0, "val/top1": top1, "energy_uj": 0.1,
            "firing_rate/head": 0.2, "lr": 1e-3, "seconds": 3.0, "time": 1.6e9 + epoch, **more}  # fmt: skip


def shown(folder):
    """What TensorBoard reads below a folder."""
    return EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()


def test_a_run_that_goes_on_has_every_epoch_once(tmp_path):
    run = tmp_path / "runs" / "mine"
    first = EventFile(run, CONFIG, None)
    first.write([row(1, 50.0)])
    first.write([row(2, 70.0)])  # and the process is killed, before or after metrics.jsonl knows it
    rows = [row(1, 50.0), row(2, 60.0), row(3, 55.0)]
    again = EventFile(run, CONFIG, None)
    again.write(rows)
    again.write([row(4, 65.0)])
    again.close(failed=False)
    found = shown(tmp_path / "runs")
    assert list(found.Runs()) == ["mine"], "it is called by its name"
    points = found.Scalars("mine", tag("val/top1"))
    assert [(p.step, p.value) for p in points] == [(1, 50.0), (2, 60.0), (3, 55.0), (4, 65.0)]
    assert points[2].wall_time == 1.6e9 + 3, "when it was trained, not when it was written"
    assert [p.value for p in found.Scalars("mine", tag("best/top1"))] == [50.0, 60.0, 60.0, 65.0]
    assert not any(name.rpartition("/")[2] == "time" for name in found.Runs()["mine"]["scalars"])


def test_loss_and_accuracy_come_first_and_every_curve_says_what_it_is(tmp_path):
    names = [name for name in reported(CONFIG) if name != "epoch"]
    tags = sorted({tag(name) for name in [*names, "best/top1"]})
    groups = list(dict.fromkeys(name.partition("/")[0] for name in tags))
    assert groups == ["accuracy", "loss", "model", "neurons", "training"] and len(tags) == len({*names, "best/top1"})
    assert all(meaning(name) for name in names), [name for name in names if not meaning(name)]
    assert tag("val/top1") == "accuracy/validation top-1 (%)" and tag("firing_rate/head") == "neurons/firing rate of head"
    EventFile(tmp_path, CONFIG, None).write([row(1, 50.0), row(2, 60.0)])
    described = {}
    for path in tmp_path.glob(f"{PREFIX}*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                described.setdefault(value.tag, value.metadata)
    about = described[tag("energy_uj")]
    assert "microjoules" in about.summary_description and about.plugin_data.plugin_name == "scalars"
    assert all(described[tag(name)].summary_description == meaning(name) for name in ("lr", "val/loss", "firing_rate/head"))


def test_the_layout_shows_curves_that_there_are(tmp_path):
    EventFile(tmp_path, CONFIG, None).write([row(1, 50.0, samples_per_second=10.0)])
    found = shown(tmp_path)
    content = found.SummaryMetadata(".", "custom_scalars__config__")
    assert content.plugin_data.plugin_name == "custom_scalars"
    (tensor,) = found.Tensors(".", "custom_scalars__config__")
    made = Layout.FromString(tensor.tensor_proto.string_val[0])
    assert [category.title for category in made.category] == list(layout())
    scalars = found.Runs()["."]["scalars"]
    for category in made.category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                assert any(re.match(pattern, name) for name in scalars), f"{chart.title}: no curve is like {pattern}"
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(found.GetAccumulator(".").summary_metadata)
