"""What a person sees: progress while waiting, tables, pages, pictures. Programs read `--json` instead."""

from statten.display.terminal import console, duration, numeral, progress, progress_bar, state_word, table, use_stderr

__all__ = ["console", "duration", "numeral", "progress", "progress_bar", "state_word", "table", "use_stderr"]
