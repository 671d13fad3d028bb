"""What `pcssl benchmark` times: one module an operator or job, with `cases(sample, settings)`."""

# operator -> module, what it is
OPERATORS: dict[str, tuple[str, str]] = {
    "conv": ("pcssl.benchmarks.conv", "3x3x3 submanifold convolution"),
    "map": ("pcssl.benchmarks.neighbor_map", "neighbour tables of convolutions"),
    "interpolate": ("pcssl.benchmarks.interpolate", "all levels of a U-Net, strides 1 to 16, read at the points"),
    "voxelize": ("pcssl.benchmarks.voxelize", "points to voxels"),
    "segment": ("pcssl.benchmarks.segment", "reduction over segments: 2x2x2 pooling"),
    "curves": ("pcssl.benchmarks.curves", "keys along space-filling curves"),
    "nearest": ("pcssl.benchmarks.nearest", "the nearest point within a radius"),
    "sample": ("pcssl.benchmarks.msm_sample", "a training sample of Masked Scene Modeling, views to matches"),
}
