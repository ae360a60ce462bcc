//! Tables as kubectl prints them: columns as wide as their widest cell, three spaces between.

/// Rows of equal length, the first of which is the head.
pub fn print(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width: Vec<usize> =
        (0..columns).map(|i| rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if i + 1 < row.len() {
                line.extend(std::iter::repeat_n(' ', width[i] - cell.chars().count() + 3));
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A row of anything that prints.
macro_rules! row {
    ($($cell:expr),+ $(,)?) => { vec![$(($cell).to_string()),+] };
}
pub(crate) use row;

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let t = super::print(&[row!["NAME", "VERSION"], row!["ippool-test", 4]]);
        assert_eq!(t, "NAME          VERSION\nippool-test   4\n");
    }
}
