//! One field of a batch: its name, type and shape, and where it lies in the batch's block.

/// Where fields and blocks start, in bytes.
pub const ALIGN: usize = 64;

/// Type of a field's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// u8
    U8,
    /// i16
    I16,
    /// i32
    I32,
    /// i64
    I64,
}

/// One field of a batch in its block.
#[derive(Clone, Debug)]
pub struct Field {
    /// Name as in `PackedBatch`.
    pub name: &'static str,
    /// Type of its values.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// First byte in the block.
    pub offset: usize,
}

impl Field {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
