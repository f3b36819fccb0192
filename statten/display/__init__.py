"""What a person sees: progress while waiting, tables, pages, pictures. Programs read `--json` instead."""

from statten.display.terminal import console, duration, progress, progress_bar, table, use_stderr

__all__ = ["console", "duration", "progress", "progress_bar", "table", "use_stderr"]
