"""What is printed fits the terminal: lines of figures have a short form, sentences wrap at words, commands stay whole."""

from statten.display.run import epoch_line
from statten.display.terminal import fitted

ROW = {
    "epoch": 107.0, "train/loss": 2.2954, "val/loss": 12.2704, "val/top1": 100.0, "lr": 2.4e-3, "samples_per_second": 12345.6,
    "seconds": 700.0,
}  # fmt: skip


def test_an_epoch_is_a_line():
    whole = epoch_line(ROW, 210)
    assert epoch_line(ROW, 210, 120) == whole and "lr 2.4e-03" in whole and "val loss 12.270" in whole
    narrow = epoch_line(ROW, 210, 80)
    assert len(narrow) <= 80 and narrow == "epoch 107/210  loss 2.295  val 12.270  top-1 100.00 %  12,346/s  20:01:40 left"


def test_sentences_are_wrapped_below_their_beginning():
    words = " ".join(["word"] * 30)
    lines = fitted(f"  how sure    {words}", 60).split("\n")
    assert all(len(line) <= 60 for line in lines) and all(line.startswith(" " * 14 + "word") for line in lines[1:])
    assert fitted("short [bold]line[/]", 20) == "short [bold]line[/]"
    assert fitted(words, 60).split("\n")[1].startswith("  word")


def test_commands_and_paths_are_left_whole():
    command = "  train on    statten promote " + "a" * 90 + " --set train.epochs=20"
    assert fitted(command, 60) == command
    assert "/x" * 50 in fitted("  folder      " + "/x" * 50, 60)
