//! What the planner hands to the renderer: which image goes into which slot of which sequence, with all that was drawn
//! for it. Plain integers, no pixels, nothing of Python.

/// Patches per side of an image before drop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Rows of patches.
    pub h: u16,
    /// Columns of patches.
    pub w: u16,
}

impl Grid {
    /// Tokens before drop.
    pub fn tokens(self) -> u32 {
        u32::from(self.h) * u32::from(self.w)
    }
}

/// A rectangle of the oriented source image, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crop {
    /// First row.
    pub top: i32,
    /// First column.
    pub left: i32,
    /// Rows.
    pub height: i32,
    /// Columns.
    pub width: i32,
}

/// Where the pixels of a warped image come from, and what of it was drawn by RandAugment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warp {
    /// Row by row the 3 × 3 matrix that leads from a point (x, y, 1) of the warped picture to that of the picture as it
    /// was, after crop and flip; both in fractions of width and height. Its last row gives 1 in the picture's middle.
    pub map: [f32; 9],
    /// Layers of RandAugment that are part of the map; the others change colours.
    pub layers: u8,
}

impl Warp {
    /// What leaves every pixel where it is.
    pub const NONE: Self = Self { map: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], layers: 0 };
}

/// One image in its slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlannedImage {
    /// Row in its index.
    pub row: u64,
    /// Key of the permutation whose prefix is the kept tokens (see `kept_tokens`).
    pub key: u64,
    /// Crop in oriented source pixels.
    pub crop: Crop,
    /// First slot of its segment in the sequence; its prefix tokens come first.
    pub offset: u32,
    /// Patch tokens kept; the segment has `prefix_tokens + kept` slots.
    pub kept: u32,
    /// First slot of its segment in the teacher's view; 0 without one.
    pub teacher_offset: u32,
    /// First slot of its caption among the sequence's text tokens.
    pub text_offset: u32,
    /// Patches per side before drop.
    pub grid: Grid,
    /// Patches per side in the teacher's view, where nothing is dropped.
    pub teacher_grid: Grid,
    /// Which index of the mixture.
    pub source: u16,
    /// Mirrored left to right, after the crop.
    pub flip: bool,
}

/// The sequences of one batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlannedBatch {
    /// Epoch of the plan.
    pub epoch: u64,
    /// Number of the first sequence in its epoch.
    pub first: u64,
    /// Images of the run before its first sequence; 0 where it comes from no plan.
    pub position: u64,
    /// P of all sequences of the batch.
    pub patch_size: u32,
    /// B: sequences in the batch; those beyond `sequences.len()` are masked.
    pub batch_size: usize,
    /// The images of each sequence, by rising offset.
    pub sequences: Vec<Vec<PlannedImage>>,
    /// What becomes of each image, beside it in `sequences`; empty where the plan warps nothing.
    pub warps: Vec<Vec<Warp>>,
}

impl PlannedBatch {
    /// The warp of image `i` of sequence `s`, where the plan has any.
    pub fn warp(&self, s: usize, i: usize) -> Option<&Warp> {
        self.warps.get(s).map(|warps| &warps[i])
    }
}

/// Limits of one view of the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewLimits {
    /// L.
    pub sequence_length: u32,
    /// M, prefix tokens included.
    pub max_tokens: u32,
    /// Slots at the start of each image's segment.
    pub prefix_tokens: u32,
}

/// What fixes the shapes of a batch, besides P and B.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchLimits {
    /// The batch's own view.
    pub view: ViewLimits,
    /// The teacher's view and its fixed P.
    pub teacher: Option<(ViewLimits, u32)>,
    /// E.
    pub max_images: u32,
    /// K.
    pub label_width: u32,
    /// Lt; 0 without captions.
    pub text_tokens: u32,
    /// Tokens of one caption at most; longer ones are cut.
    pub max_text_tokens: u32,
    /// Whether batches say how their images are warped.
    pub warps: bool,
    /// Boxes and masks of their images.
    pub targets: TargetLimits,
}

/// What batches hold of boxes and masks; nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TargetLimits {
    /// O: boxes of a sequence; 0 without boxes.
    pub boxes: u32,
    /// The least share of a box that a crop must leave for it to stay.
    pub clip: f32,
    /// S: cells of a mask per side of a patch; 0 without masks.
    pub masks: u32,
    /// Whether a cell tells the region and not the class.
    pub regions: bool,
}
