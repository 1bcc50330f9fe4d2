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
    /// f32
    F32,
}

impl Dtype {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 => 8,
        }
    }

    /// Its code where arrays are described.
    pub fn code(self) -> &'static str {
        match self {
            Self::U8 => "u1",
            Self::I16 => "<i2",
            Self::I32 => "<i4",
            Self::I64 => "<i8",
            Self::F32 => "<f4",
        }
    }
}

/// A type that fields have.
pub trait Value {
    /// Its name among them.
    const DTYPE: Dtype;
}

impl Value for u8 {
    const DTYPE: Dtype = Dtype::U8;
}

impl Value for i16 {
    const DTYPE: Dtype = Dtype::I16;
}

impl Value for i32 {
    const DTYPE: Dtype = Dtype::I32;
}

impl Value for i64 {
    const DTYPE: Dtype = Dtype::I64;
}

impl Value for f32 {
    const DTYPE: Dtype = Dtype::F32;
}

/// One field of a batch in its block.
#[derive(Clone, Debug)]
pub struct Field {
    /// Name as in `PackedBatch`.
    pub name: &'static str,
    /// Type of its values.
    pub dtype: Dtype,
    /// First byte in the block.
    pub offset: usize,
    sides: [usize; 3],
    rank: usize,
}

impl Field {
    /// A field of at most three dimensions.
    pub fn new(name: &'static str, dtype: Dtype, shape: &[usize], offset: usize) -> Self {
        let mut sides = [1; 3];
        sides[..shape.len()].copy_from_slice(shape);
        Self { name, dtype, offset, sides, rank: shape.len() }
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.sides[..self.rank]
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.sides.iter().product()
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
