enum Mine {}

fn main() {
    let _: Option<tenure::ModelHandle<Mine>> = None;
}
