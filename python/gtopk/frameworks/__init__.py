"""gtopk in other packages' training loops, a module a package: accelerate, lightning, transformers. Each imports its own."""
