"""A DICOM node: films come by C-STORE, structured reports go back by C-STORE.

`settings`, `questions`, `identity`: what the caller wants, and the UIDs that follow from it.
`folder`, `queue`: what survives a kill.
`scp` (film in) → `reading` (film → findings) → `heading`, `codes`, `sr`, `gsps`, `capture` (→ DICOM) →
`work` (the one thread that has the model) → `send` (to the PACS) → `node` (all of it).
"""
