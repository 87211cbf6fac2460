from setuptools import setup

ROOMS = ("export", "runtime", "calibration", "training", "benchmarks")

setup(
    packages=[
        "radvlm_edge",
        "radvlm_edge.cli",
        "radvlm_edge.serve",
        "radvlm_edge.batch",
        "radvlm_edge.node",
        "radvlm_edge.kit",
        *(f"radvlm_edge.{room}" for room in ROOMS),
    ],
    package_dir={"radvlm_edge": "src/radvlm_edge", **{f"radvlm_edge.{room}": room for room in ROOMS}},
)
