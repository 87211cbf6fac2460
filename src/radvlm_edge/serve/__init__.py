"""The service: one bundle behind an OpenAI-compatible API and a page to look at films with.

`settings` (what the caller wants) → `worker` (the one thread that has the model) → `films` (studies kept) →
`uploads`, `questions`, `shapes` (request → what to do) → `work` (what the worker does) → `replies` → `app`.
"""
