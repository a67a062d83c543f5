//! x
/// x
#[derive(Debug)]
pub struct Stack;
/// x
#[derive(Debug)]
pub struct Names;
