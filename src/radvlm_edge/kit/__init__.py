"""The offline kit: everything a machine without a network needs, in one archive it can check itself.

targets → wheels (closure, sources, llama) → sbom, licences, card → pack (manifest, sums) → archive
"""
