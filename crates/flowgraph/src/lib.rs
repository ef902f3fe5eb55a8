//! flowgraph
