//! An open file, as Python holds it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use numpy::ndarray::ArrayView1;
use numpy::{Element, PyArray1, PyArrayDyn, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::{PyKeyError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use smq_format::{Defect, SmqFile, Statistics, TensorData, TensorView, fp8, hash, nf4};

use crate::describe::{Errors, FileInfo, ReceiptInfo, TensorInfo};
use crate::errors::{closed, damaged, exception};
use crate::fill::{Half, fill_f32, fill_half, is_small};
use crate::threads::on_all_threads;

/// An open .smq file; closing it leaves the map to the views that were lent of it.
#[pyclass(frozen, module = "smq_format._native")]
pub(crate) struct NativeFile {
    path: PathBuf,
    open: Mutex<Option<Arc<SmqFile>>>,
}

/// Keeps the map for an array that is a view of it.
#[pyclass(frozen, module = "smq_format._native")]
struct Lent {
    _file: Arc<SmqFile>,
}

#[pymethods]
impl NativeFile {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let file = py.detach(|| on_all_threads(|| SmqFile::open(&path)))?;
        let file = Arc::new(file.map_err(exception)?);
        Ok(NativeFile {
            path,
            open: Mutex::new(Some(file)),
        })
    }

    fn close(&self) {
        drop(self.lock().take());
    }

    fn closed(&self) -> bool {
        self.lock().is_none()
    }

    fn names(&self) -> PyResult<Vec<String>> {
        let file = self.file()?;
        Ok(file.tensors().map(|view| view.name().to_owned()).collect())
    }

    fn describe(&self) -> PyResult<FileInfo> {
        Ok(FileInfo::of(&*self.file()?))
    }

    fn tensor(&self, name: &str) -> PyResult<TensorInfo> {
        let file = self.file()?;
        Ok(TensorInfo::of(&view(&file, name)?))
    }

    fn embedded<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let file = self.file()?;
        Ok(file
            .embedded(name)
            .map(|contents| PyBytes::new(py, contents)))
    }

    fn statistics(&self, py: Python<'_>, name: &str) -> PyResult<Option<Errors>> {
        let statistics = self.read_statistics(py)?;
        Ok(statistics.and_then(|s| s.tensor(name).map(Errors::from)))
    }

    fn receipts(&self, py: Python<'_>) -> PyResult<Vec<ReceiptInfo>> {
        let statistics = self.read_statistics(py)?.unwrap_or_default();
        Ok(statistics.receipts.iter().map(ReceiptInfo::from).collect())
    }

    fn dequantize(
        &self,
        py: Python<'_>,
        name: &str,
        dtype: &str,
        out: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let file = self.file()?;
        let view = view(&file, name)?;
        let half = match dtype {
            "f32" => return fill(py, &file, &view, out, fill_f32),
            "f16" => Half::F16,
            "bf16" => Half::Bf16,
            other => {
                return Err(PyValueError::new_err(format!(
                    "dtype {other:?} is unknown; expected f32, f16 or bf16"
                )));
            }
        };
        fill(py, &file, &view, out, |view, out| {
            fill_half(view, half, out)
        })
    }

    fn blob<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        role: &str,
    ) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let file = self.file()?;
        let view = view(&file, name)?;
        let blobs = &view.entry().blobs;
        let blob = blobs.iter().find(|blob| blob.role.name() == role);
        let Some(blob) = blob else {
            return Err(PyKeyError::new_err(format!("{name}: no blob {role:?}")));
        };
        // Opening the file has checked that its blobs are within it.
        let (offset, length) = (blob.offset as usize, blob.length as usize);
        let bytes = ArrayView1::from(&file.bytes()[offset..offset + length]);
        let lender = Bound::new(
            py,
            Lent {
                _file: Arc::clone(&file),
            },
        )?;
        // SAFETY: `lender` holds the file, whose map neither moves nor ends before the file does;
        // and the array, which it becomes the base of, keeps `lender`. The map is read-only
        // memory: the array is made read-only before anybody sees it, and numpy does not take
        // that back, since its base offers no writable memory.
        let array = unsafe { PyArray1::borrow_from_array(&bytes, lender.into_any()) };
        drop(array.readwrite().make_nonwriteable());
        Ok(array)
    }

    fn scales<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let file = self.file()?;
        let view = view(&file, name)?;
        let scales = py.detach(|| match view.data() {
            TensorData::Raw { .. } => Ok(Vec::new()),
            TensorData::Int4 { scales, .. } | TensorData::Lut4 { scales, .. } => {
                scales.decode_all()
            }
            TensorData::Nf4 { scales, .. } => {
                let mut absmax = vec![0.0; scales.absmax.len()];
                scales.decode(0..absmax.len(), &mut absmax)?;
                Ok(absmax)
            }
            TensorData::Fp8 { scales, .. } => scales.decode_all(),
        });
        let scales = scales.map_err(|defect| damaged(file.path(), &defect))?;
        Ok(PyArray1::from_vec(py, scales))
    }

    fn levels<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let file = self.file()?;
        let levels = match view(&file, name)?.data() {
            TensorData::Raw { .. } => Vec::new(),
            // A nibble is an integer in two's complement.
            TensorData::Int4 { .. } => (0..8u8)
                .map(f32::from)
                .chain((-8..0i8).map(f32::from))
                .collect(),
            TensorData::Lut4 { levels, .. } => levels.values().to_vec(),
            TensorData::Nf4 { .. } => nf4::VALUES.to_vec(),
            TensorData::Fp8 { .. } => fp8::VALUES.to_vec(),
        };
        Ok(PyArray1::from_vec(py, levels))
    }

    /// Sentences that say what is wrong with the file, or with one tensor of it.
    #[pyo3(signature = (name=None))]
    fn verify(&self, py: Python<'_>, name: Option<&str>) -> PyResult<Vec<String>> {
        let file = self.file()?;
        let view = name.map(|name| view(&file, name)).transpose()?;
        let defects = py.detach(|| {
            on_all_threads(|| match view {
                None => file.verify(|_| ()),
                Some(view) => verify_tensor(&file, &view),
            })
        })?;
        Ok(defects.iter().map(Defect::to_string).collect())
    }
}

impl NativeFile {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<SmqFile>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> PyResult<Arc<SmqFile>> {
        self.lock().clone().ok_or_else(|| closed(&self.path))
    }

    fn read_statistics(&self, py: Python<'_>) -> PyResult<Option<Statistics>> {
        let file = self.file()?;
        py.detach(|| on_all_threads(|| file.statistics()))?
            .map_err(exception)
    }
}

fn view<'a>(file: &'a SmqFile, name: &str) -> PyResult<TensorView<'a>> {
    let unknown = || PyKeyError::new_err(name.to_owned());
    file.tensor(name).ok_or_else(unknown)
}

/// Has `fill` write the elements into `out`, a C-contiguous array of as many `T`, without the GIL.
fn fill<T: Element + Send>(
    py: Python<'_>,
    file: &SmqFile,
    view: &TensorView,
    out: &Bound<'_, PyAny>,
    fill: impl Fn(&TensorView, &mut [T]) -> Result<(), Defect> + Sync,
) -> PyResult<()> {
    let unfit = |problem: &str| {
        PyTypeError::new_err(format!(
            "tensor {:?} cannot be written into this array: {problem}",
            view.name()
        ))
    };
    let Ok(array) = out.cast::<PyArrayDyn<T>>() else {
        return Err(unfit("its element type is another"));
    };
    if array.shape() != view.shape() {
        return Err(unfit("its shape is another"));
    }
    let mut array = array
        .try_readwrite()
        .map_err(|error| unfit(&error.to_string()))?;
    let out = array
        .as_slice_mut()
        .map_err(|_| unfit("its elements are not row-major and contiguous"))?;
    let filled = match is_small(out.len()) {
        true => fill(view, out),
        false => py.detach(|| on_all_threads(|| fill(view, out)))?,
    };
    filled.map_err(|defect| damaged(file.path(), &defect))
}

/// What [`SmqFile::verify`] looks at of one tensor.
fn verify_tensor(file: &SmqFile, view: &TensorView) -> Vec<Defect> {
    let blobs = view.entry().blobs.iter();
    let damaged = blobs.filter(|blob| {
        let (offset, length) = (blob.offset as usize, blob.length as usize);
        hash(&file.bytes()[offset..offset + length]) != blob.blake3
    });
    let mut defects: Vec<_> = damaged
        .map(|blob| Defect::BlobHash {
            owner: format!("tensor {:?} {}", view.name(), blob.role.name()),
        })
        .collect();
    defects.extend(view.check().err());
    defects
}
