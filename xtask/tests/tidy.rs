//! The tree is as ARCHITECTURE.md says: layers, no lost files, generated files current, no place of one machine.

use xtask::tidy;

fn nothing(check: fn(&std::path::Path) -> anyhow::Result<Vec<String>>) {
    let found = check(&xtask::workspace()).expect("the tree can be read");
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn arrows_point_down() {
    nothing(tidy::arrows);
}

#[test]
fn every_source_file_is_in_a_module_tree() {
    nothing(tidy::orphans);
}

#[test]
fn generated_crds_are_current() {
    nothing(tidy::generated);
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    nothing(tidy::places);
}

#[test]
fn thinking_has_no_io() {
    nothing(tidy::thinking);
}

#[test]
fn every_source_file_says_what_it_is() {
    nothing(tidy::headers);
}
