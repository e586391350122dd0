//! Expected tensors that a script computed elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::Deserialize;

/// The contents of a folder with `expected.json` and `expected.safetensors`.
///
/// `expected.json` holds `{"prompts": {"0": [token ids], …}}` (other keys are left
/// alone), the tensors have the names `{prompt}/{hook point}`.
#[derive(Debug)]
pub struct Golden {
    /// Token ids of each prompt.
    pub prompts: BTreeMap<String, Vec<u32>>,
    tensors: HashMap<String, Tensor>,
}

#[derive(Deserialize)]
struct Expected {
    prompts: BTreeMap<String, Vec<u32>>,
}

impl Golden {
    /// Reads the folder.
    #[track_caller]
    pub fn load(folder: impl AsRef<Path>) -> Self {
        let folder = folder.as_ref();
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let expected: Expected = serde_json::from_slice(&read("expected.json")).unwrap();
        let tensors = read("expected.safetensors");
        let tensors = candle_core::safetensors::load_buffer(&tensors, &Device::Cpu).unwrap();
        Self { prompts: expected.prompts, tensors }
    }

    /// The tensor of a prompt at a hook point.
    #[track_caller]
    pub fn tensor(&self, prompt: &str, point: &str) -> &Tensor {
        let name = format!("{prompt}/{point}");
        self.tensors.get(&name).unwrap_or_else(|| panic!("no golden tensor `{name}`"))
    }

    /// The hook points that are there for a prompt, in alphabetical order.
    pub fn points(&self, prompt: &str) -> Vec<&str> {
        let prefix = format!("{prompt}/");
        let mut points: Vec<&str> =
            self.tensors.keys().filter_map(|name| name.strip_prefix(&prefix)).collect();
        points.sort_unstable();
        points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_folder() {
        let folder = std::env::temp_dir().join(format!("golden-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(
            folder.join("expected.json"),
            r#"{"prompts": {"0": [1, 2], "1": [3]}, "seed": 1}"#,
        )
        .unwrap();
        let tensor = crate::Data::new(1).tensor(&[2, 3]);
        let named = HashMap::from([("0/logits", tensor.clone()), ("1/logits", tensor.clone())]);
        candle_core::safetensors::save(&named, folder.join("expected.safetensors")).unwrap();
        let golden = Golden::load(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(golden.prompts["0"], [1, 2]);
        assert_eq!(golden.points("1"), ["logits"]);
        crate::assert_tensor_bits("logits", golden.tensor("0", "logits"), &tensor);
    }
}
