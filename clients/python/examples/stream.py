"""Output as it appears, input while it runs, and an end by interrupt."""

from cooper import Session

with Session() as session:
    for output in session.stream("for n in range(3): print('step', n, flush=True)"):
        print(output.text, end="")

    guess = session.stream("name = input('who? '); print('hello', name)", stdin_open=True)
    guess.write(b"cooper\n", end=True)
    print(guess.result().stdout, end="")

    endless = session.stream("print('on', flush=True)\nwhile True: pass")
    for output in endless:
        endless.interrupt()
    error = endless.result().error
    print("ended by", error.name if error else "nothing")
