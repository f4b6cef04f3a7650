"""Programs for those who work on the repository; they are not part of the wheel."""
