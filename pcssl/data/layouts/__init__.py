"""Raw layouts of public datasets: one file a dataset, each finds its scenes and says how to read one."""
