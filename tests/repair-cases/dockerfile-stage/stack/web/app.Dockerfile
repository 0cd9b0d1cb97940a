FROM python:3.11-slim AS build
WORKDIR /build
COPY numbers.json .
RUN cat numbers.json > numbers.txt

FROM python:3.11-slim AS app
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY --from=build /build/numbers.txt .
COPY app.py .
CMD ["python3", "-u", "app.py"]

FROM app AS debug
RUN python3 -c 'print("never built")'
