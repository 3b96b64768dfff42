"""Training algorithms: dataflow graphs of model function calls, and the interfaces that implement the calls."""
