//! Models on devices: the golden models on main memory in place of a GPU's, with and without the
//! CUDA kernels run by emulation.

#![allow(clippy::unwrap_used)] // what a test cannot set up has failed

mod common;
#[path = "placed/emulated.rs"]
mod machine;
#[path = "placed/models.rs"]
mod models;

use common::Golden;
use runner::WeightDtype;

#[test]
fn layers_on_two_devices_agree_with_transformers() {
    // Experts on devices have kernels alone.
    let others = |golden: &Golden| !golden.name.starts_with("mixtral");
    for golden in Golden::all().into_iter().filter(others) {
        let model = models::placed(&golden, WeightDtype::F32, 2);
        for &request in golden.prompts.keys() {
            models::check(&golden, &model, request, &models::run(&model, &golden, request));
        }
    }
}
