"""From TCP accept to an admitted connection."""
