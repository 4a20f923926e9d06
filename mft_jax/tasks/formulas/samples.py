"""Formulas of many kinds. Parsing them fills the caches of the parser before the first comparison (engine.warm_up)."""

SAMPLES = (
    r"\frac{1}{2}", r"\frac{3\sqrt{2}}{4}-\sqrt[3]{5}", r"2x^2-3xy+1", r"(2x+1)(x-2)(x^2+1)", r"x(x+3)/2", r"|x-1|",
    r"(1,2]", r"(-\infty,1)\cup[2,\infty)", r"\left[-\frac{1}{2},3\right)", r"[1,2)\cup\{3\}", r"(1,2,3)", r"(3,2/5)",
    r"(x,y)=(1,2)", r"(x-4)^2+(y+3)^2=9", r"\{1,2\}", r"1,2", r"3\pm\sqrt{2}", r"1.5\times 10^{3}", r"12_{5}",
    r"y=-\frac{1}{2}x+3", r"y(x)=c_1e^{-2x}+\frac{x^2}{3}", r"1<x\le 2", r"\log_{3}(5)", r"\sin^2 x+(\cos x)^3",
    r"\tan^{-1}\frac{3}{4}", r"\frac{1}{2}\arctan\left(\frac{x}{2}\right)+C", r"\frac{\sin(2x)+3\cos 4x}{5+\sin x}",
    r"e^{-5x}(C_1\cos(8x)+C_2\sin(8x))", r"C_1e^{-5x}\cos(8x)+\frac{3}{5}e^{2x}\sin(3x)", r"\lambda^2e^{-\lambda x}",
    r"kT\ln\left(2+e^{-2\epsilon/k_BT}\right)", r"\frac{\ln|x-6|-x^2\ln x}{2}+C", r"\sqrt{\frac{2km}{3\hbar}}",
    r"\frac{1}{\sqrt{2\pi}}e^{-\frac{(x-7)^2}{2\cdot 2^2}}", r"\frac{e^{-(x-7)^2/4}}{2\sqrt{2\pi}}",
    r"\frac{x^{3}}{(x^2+4)^{3/2}}",
    r"\frac{\mu_0 I}{2\pi r}\cdot\frac{q}{4\pi R^2\epsilon_0}", r"\frac{m_1-3m_2}{m_1+m_2}g", r"x\sqrt{5-x^2}",
    r"\binom{n}{4}p^{4}(1-p)^{n-4}", r"n!\left(\frac{e}{n}\right)^{n+9}", r"\frac{(n+2)!}{3!(n-1)!}",
    r"\frac{\Gamma(n+4)}{\Gamma(n)}",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}\cos(9t)&-\sin 9t\\e^{6t}&0\end{pmatrix}",
    r"f(x)=x^2e^{x}",
    r"e^{5t}\begin{pmatrix}6\\2\end{pmatrix}", r"(2e^{y}x,4xe^{y},5z)", r"\int_0^\infty\frac{x^2}{e^{2x}-1}dx",
    r"\int x^{2}\cos(3x) dx", r"\sum_{n=0}^{\infty}\frac{(-1)^n x^{2n+2}}{(2n+5)!}", r"\sum_{k=1}^{n} k^2",
    r"\lim_{n\to\infty}\left(1+\frac{3}{n}\right)^{n}", r"\frac{d}{dx}\left(x^{8}e^{5x}\right)", r"\text{no}",
    r"\sqrt{5}\left(\cos\frac{\pi}{3}+i\sin\frac{\pi}{3}\right)", r"3e^{\frac{i\pi}{5}}", r"x^x(\ln x+1)",
    r"\frac{3+2i}{4}",
)  # fmt: skip
