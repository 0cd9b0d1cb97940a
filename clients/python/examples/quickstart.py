"""A session: state, output, files, packages."""

from cooper import Session

with Session() as session:
    session.run("x = 20 + 1")
    print(session.run("x * 2").text)

    result = session.run("print('hello'); 1 / 0")
    print(result.stdout, end="")
    if result.error:
        print(result.error.name)

    session.files.write("data.csv", "a,b\n1,2\n3,4\n")
    print(session.shell("wc -l < data.csv").stdout.strip())

    session.install("humanize")
    print(session.run("import humanize; humanize.naturalsize(10**9)").text)
