//! The CUDA engine: what it needs of the driver, NVRTC and cuBLASLt, all loaded at run time.
//!
//! [`Gpu`] finds the device, [`compile`](compile::compile) turns a kernel file into machine code for
//! it, [`Module`] loads that, and [`Kernel::launch`] or a [`Graph`] runs it on memory from [`memory`].
//! Nothing here needs CUDA to build, and without a GPU everything still loads.

pub mod activations;
pub mod arena;
pub mod args;
pub mod blas;
pub mod cache;
pub mod compile;
pub mod contract;
pub mod decode;
pub mod device;
mod during;
pub mod engine;
pub mod fp8;
pub mod graph;
pub mod kernels;
pub mod launch;
pub mod measure;
pub mod memory;
pub mod module;
pub mod needs;
pub mod packing;
pub mod pinned;
pub mod prefill;
pub mod rows;
pub mod state;
pub mod stream;
pub mod swiglu;
pub mod tensor_map;
pub mod upload;
pub mod weights;

pub use arena::Arena;
pub use args::Args;
pub use blas::{Blas, MatMul};
pub use device::Gpu;
pub use during::During;
pub use engine::CudaEngine;
pub use graph::{Graph, time_us};
pub use launch::Launch;
pub use memory::{DeviceBuffer, Span};
pub use module::{Kernel, Module};
pub use pinned::PinnedBuffer;
pub use stream::{Event, Stream};
pub use tensor_map::TensorMap;
