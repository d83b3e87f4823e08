//! tree-cache: a distributed cache whose nodes form a binary tree.

fn main() {
    println!("there is nothing to run yet");
}
