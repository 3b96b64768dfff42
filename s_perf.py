import json, time, pydoc_data.topics, sys, tempfile, inspect, pkgutil, importlib, warnings, resource
from pathlib import Path
from transformers import AutoTokenizer
from reallm.data.datasets import *
from reallm_datasets.prompt_answer import PromptAnswerDataset
t=AutoTokenizer.from_pretrained("/tmp/w/s_smoltok")
d=Path(tempfile.mkdtemp())
tx=sorted(pydoc_data.topics.topics.items())
def rows_pa():
    for i in range(200):
        for n,x in tx: yield {"prompt":f"{n} {i}\n","answer":x[:1500]}
def rows_chat(k=3):
    for i in range(40):
        for n,x in tx:
            m=[]
            for j in range(k): m+= [{"role":"user","content":f"{n} {i} {j}"},{"role":"assistant","content":x[j*300:j*300+300] or "x"}]
            yield {"messages":m}
for name,r in (("pa",rows_pa),("chat",rows_chat)):
    p=d/f"{name}.jsonl"
    with p.open("w") as f:
        for x in r(): f.write(json.dumps(x)+"\n")
    from reallm.data.rows import read_rows
    a=time.time(); rr=read_rows(p); b=time.time()-a
    n=len(rr); del rr
    a=time.time(); ds=PromptAnswerDataset(DatasetUtility(1,0,1,t),path=p,max_seqlen=2048); c=time.time()-a
    print(name,n,"rows; read",round(b,2),"s; total",round(c,2),"s",ds.report())
    a=time.time(); [ds[i] for i in range(2000)]; print("getitem us",(time.time()-a)/2000*1e6)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3,"MB")
