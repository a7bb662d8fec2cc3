"""From the TCP accept to an admitted connection."""
