//! The CUDA engine: what it needs of the driver, NVRTC and cuBLASLt, all loaded at run time.
//!
//! [`Gpu`] finds the device, [`compile`](compile::compile) turns a kernel file into machine code
//! for it, [`Module`] loads that, and [`Kernel::launch`] or a [`Graph`] runs it on memory from a
//! [`DeviceBuffer`]. [`CudaEngine`] is the engine; the calls that it makes are public for the
//! program that checks and times each kernel by itself. Nothing here needs CUDA to build, and
//! without a GPU everything still loads.

mod activations;
mod arena;
mod args;
mod blas;
mod book;
pub mod cache;
mod calibrate;
pub mod compile;
mod contract;
mod decode;
mod device;
mod during;
mod elf;
mod engine;
mod family;
mod fp8;
mod gemm_bf16;
mod graph;
mod kernels;
mod kv;
mod launch;
mod libraries;
mod limits;
pub mod measure;
mod memory;
mod module;
mod needs;
mod packing;
mod pinned;
mod prefill;
mod row_count;
mod rows;
mod serve;
mod solver;
mod state;
mod stream;
mod swiglu;
mod tensor_map;
mod upload;
mod weights;

pub use activations::Activations;
pub use arena::Arena;
pub use args::Args;
pub use blas::{Blas, Form, Input, MatMul, Output};
pub use book::{BOOK_BYTES, book_bytes};
pub use calibrate::{
    CalibrationLosses, CalibrationScales, Calibrator, Rounding, Slot, calibrate_defines,
};
pub use contract::{BLOCK_SHARED_BYTES, Defines};
pub use decode::plan::{Epilogue, Kind, Plan};
pub use decode::program::{Buffers, Phase, Program, Uses};
pub use decode::{Decoder, many_defines, many_from, paged_defines};
pub use device::{Gpu, memory_in_use, pci_bus_id};
pub use engine::{CudaEngine, CudaGuessing};
pub use family::{leave_defines, leaves, windows};
pub use fp8::{QuantizedRows, fp8_defines};
pub use gemm_bf16::Bf16Cut;
pub use graph::{Graph, time_us};
pub use kernels::{Call, Kernels};
pub use kv::{Cache, KV_FILE, KvRows, kv_cache_defines, kv_defines};
pub use launch::Launch;
pub use memory::{DeviceBuffer, Span};
pub use module::{Kernel, Module};
pub use needs::{Need, SMS, kernels_of};
pub use pinned::PinnedBuffer;
pub use prefill::attention::{Attention, ROPE_THREADS, Rows, rope_defines, table_launch};
pub use prefill::{CHUNK, ROW_THREADS, logits_defines, row_defines, swiglu_launch};
pub use row_count::RowCount;
pub use rows::{
    Cut, RowProducts, Target, int4_call, int4_widened_from, reads_int4_order, scratch_bytes, widen,
    widen_defines,
};
pub use serve::{CudaBatch, choose_defines};
pub use state::{COPIES, State};
pub use stream::Stream;
pub use swiglu::{SwigluCut, fuses_bf16, swiglu_call};
pub use tensor_map::TensorMap;
pub use upload::{Piece, Staging, pinned_copy_rate, upload};
pub use weights::{DeviceMatrix, Format, SLACK};
