"""Programs for developers: benchmarks, soak, fuzzing, conformance, screenshots."""
