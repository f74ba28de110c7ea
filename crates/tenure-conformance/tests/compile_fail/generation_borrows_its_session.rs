fn main() -> Result<(), tenure::Error> {
    let model = tenure::Engine::auto()?.load_text("model.gguf")?;
    let mut session = model.session()?;
    let first = session.generate("one")?;
    let second = session.generate("two")?;
    drop((first, second));
    Ok(())
}
